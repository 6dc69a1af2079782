"""Fetch the page of each link in the background: its title, description and icon.

Built on `app.links`, which does not know it, and on `quart_upsun.fetching`.
"""
