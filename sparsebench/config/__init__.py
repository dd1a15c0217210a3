"""The typed configuration: schema, checks, identity. Imports nothing heavy."""
