"""What a search leaves behind: `SearchResult`, tables, files, figures."""
