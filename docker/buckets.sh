#!/bin/sh
# For each user of the object store a bucket, and a key that opens this bucket and nothing else.
#   buckets BUCKET=SECRET …     the key has the bucket's name; again with another secret to change it
set -eu
mc alias set store "$MINIO_URL" "$MINIO_ROOT_USER" "$MINIO_ROOT_PASSWORD" > /dev/null
for pair in "$@"; do
    bucket=${pair%%=*}
    mc mb --ignore-existing "store/$bucket"
    printf '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["s3:*"],
        "Resource": ["arn:aws:s3:::%s", "arn:aws:s3:::%s/*"]}]}' "$bucket" "$bucket" > /tmp/policy.json
    mc admin policy create store "$bucket" /tmp/policy.json
    mc admin user add store "$bucket" "${pair#*=}"
    # To attach it a second time is an error.
    mc admin user info store "$bucket" | grep -q "PolicyName: $bucket" \
        || mc admin policy attach store "$bucket" --user "$bucket"
done
