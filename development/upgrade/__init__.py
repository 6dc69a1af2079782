"""Take over a newer release of the toolkit: `make upgrade FROM=…`.

An upgrade replaces the packages that an application does not edit, and reports what else changes.
The release describes itself in `quart_upsun/releases.toml`.
"""
