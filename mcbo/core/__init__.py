"""Conventions: types, errors, displacement fields, logging. Imports only torch and numpy."""
