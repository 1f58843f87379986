"""Names of libraries that are gone, so that changing an import is the whole migration."""
