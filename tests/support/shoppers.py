"""Customers with examples of all three target kinds."""

from __future__ import annotations

import dataclasses

import numpy as np

from lam_spark.training_data.layout import Target
from lam_spark.training_data.packing import Customer
from tests.support.learnable import SHAPE as BINARY
from tests.support.learnable import person

SHAPE = dataclasses.replace(
    BINARY,
    targets=(Target("reply"), Target("amount_spent", "value"), Target("items", "next", "item", 6)),
)


def shopper(number: int) -> Customer:
    """A customer who spends more on higher items above 5; the items that follow are the next three."""
    customer = person(number)
    item = customer.queries["query_item"]
    noise = np.random.default_rng(number).normal(size=len(item)) * 0.3
    customer.queries["label_amount_spent"] = np.where(item > 5, np.exp(item - 5.0 + noise), 0.0).astype(
        np.float32
    )
    before = np.searchsorted(customer.events["known_at"], customer.queries["query_time"]) - 1
    last = customer.events["item"][before.clip(0)] - 3
    customer.queries["label_items"] = ((np.arange(6) - last[:, None] - 1) % 6 < 3).astype(np.float32)
    return customer
