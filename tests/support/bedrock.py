"""Strands' default model, which agents of tests get where none can be passed: where a multi-agent is restored."""

import functools
import os

import botocore.loaders  # type: ignore[import-untyped]
import botocore.session  # type: ignore[import-untyped]


def make_cheap() -> None:
    """Make all its clients share what they read from botocore's files, and ask no network for credentials."""
    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    botocore.session.create_loader = functools.cache(botocore.loaders.create_loader)
