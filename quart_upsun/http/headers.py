"""The security headers that every response carries."""

# Everything comes from our own origin; nothing is inline. Bootstrap draws its small icons from
# data: addresses in the style sheet.
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
        " font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none';"
        " frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
# A year, for this host alone: what else lives under somebody's domain may still speak http, and is
# not ours to switch over.
STRICT_TRANSPORT_SECURITY = "max-age=31536000"
