"""The handlers of the API's endpoints, one file for each subject."""
