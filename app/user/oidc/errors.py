"""What can go wrong at a provider."""


class ProviderUnavailableError(Exception):
    """The provider does not answer, or answers with an error of its own."""


class ProviderResponseError(Exception):
    """The response of the provider cannot be trusted. The message is for the log, without secrets.

    It contains no value of the response, because an attacker may have chosen it.
    """
