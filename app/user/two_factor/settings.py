"""The settings of two-factor authentication. `app.settings.Settings` includes them."""

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings


class TwoFactorSettings(BaseSettings):
    """Whether users may and must use two-factor authentication."""

    two_factor: bool = Field(
        default=True, description="Whether users can turn on two-factor authentication"
    )
    require_two_factor: Literal["", "administrators"] = Field(
        default="",
        description="Who must use a second factor: `administrators`, or nobody by default",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.require_two_factor and not self.two_factor:
            raise ValueError(
                "REQUIRE_TWO_FACTOR needs two-factor authentication. Set TWO_FACTOR to 1, or unset"
                " REQUIRE_TWO_FACTOR"
            )
        return self
