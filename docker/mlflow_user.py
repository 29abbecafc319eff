"""Make the MLflow user that jobs log in as, or give it its new password.

The administrator is who MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD say; the server
MLFLOW_TRACKING_URI; the user's name and password DEFT_MLFLOW_USERNAME and DEFT_MLFLOW_PASSWORD.
"""

import os

from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client

users = get_app_client("basic-auth", tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
name, password = os.environ["DEFT_MLFLOW_USERNAME"], os.environ["DEFT_MLFLOW_PASSWORD"]
try:
    users.create_user(name, password)
except MlflowException as error:
    if error.error_code != "RESOURCE_ALREADY_EXISTS":
        raise
    users.update_user_password(name, password)
