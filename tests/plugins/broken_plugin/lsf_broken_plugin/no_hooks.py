"""A module that has forgotten why it is here."""
