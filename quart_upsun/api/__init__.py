"""The JSON API under `/api/v1`: what its resources share. A feature brings the resources itself."""
