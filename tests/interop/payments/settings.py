"""A payments API and its authorization server, as small as Django lets them be.

Several server processes share one state folder: its SQLite database is what they all believe, and the
lifetime of the tokens a process issues comes from that process's environment.
"""

import os
from pathlib import Path

STATE = Path(os.environ["INTEROP_STATE"])

SECRET_KEY = "signs nothing that outlives one test run"
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "payments.urls"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "oauth2_provider",
    "rest_framework",
]
MIDDLEWARE = ["payments.recorder.Recorder", "django.middleware.common.CommonMiddleware"]

PASSWORD_HASHERS = ["payments.hashers.QuickHasher"]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": STATE / "db.sqlite3",
        # Written by one process while others read: WAL keeps readers from waiting, and a write that begins
        # as IMMEDIATE waits for its turn where a deferred one would fail with "database is locked".
        "OPTIONS": {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL",
        },
    }
}

OAUTH2_PROVIDER = {
    "SCOPES": {"read": "See payments", "write": "Make payments", "admin": "See reports"},
    "ACCESS_TOKEN_EXPIRE_SECONDS": int(os.environ.get("ACCESS_TOKEN_EXPIRE_SECONDS", "36000")),
}

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["oauth2_provider.contrib.rest_framework.OAuth2Authentication"],
    "DEFAULT_PERMISSION_CLASSES": ["oauth2_provider.contrib.rest_framework.TokenHasReadWriteScope"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}
