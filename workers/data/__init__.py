"""From records to tokenized training rows."""
