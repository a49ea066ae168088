"""Raw ids to pseudonyms, and links between ids and customers."""
