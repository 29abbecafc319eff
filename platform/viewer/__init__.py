"""Single responses of runs on a page of HTML."""
