"""The batch norm layer: calls, state, settings, and conversion from and to other libraries."""
