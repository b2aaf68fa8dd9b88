"""Keys, pseudonyms, consent: what is asked about a person."""
