"""Recipes: what is left out of a corpus, as functions that return filters; see `data_pipeline.prepare.filters`."""
