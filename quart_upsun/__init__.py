"""The toolkit: what an application on Quart, PostgreSQL and Upsun does not write itself."""
