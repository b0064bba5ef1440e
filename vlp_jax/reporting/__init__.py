"""A run on one page of HTML: what its workdir holds (`contents`), as sections, tables and curves."""
