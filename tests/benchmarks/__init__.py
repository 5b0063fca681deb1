"""What the library costs beside its peers and beside the limit: ``nox -s bench``."""
