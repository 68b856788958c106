"""Policies: which ones there are and what they contain."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from service.api.state import Service

router = APIRouter()


class PolicyBody(BaseModel):
    """A policy of the service."""

    name: str = Field(description="Its name in the parameter `policy`", examples=["radio"])
    contents: dict[str, Any] = Field(description="The keys and values of its file. Dates are texts")


class PolicyList(BaseModel):
    """The policies of the service."""

    items: list[PolicyBody] = Field(description="By name")


@router.get("/policies", tags=["recommendations"])
async def policies(service: Service) -> PolicyList:
    """List the policies that requests can name."""
    found = service.policies.by_name.items()
    return PolicyList(items=[PolicyBody(name=name, contents=dict(policy.contents)) for name, policy in found])
