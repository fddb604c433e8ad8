"""The batch norm layer: its calls, state and settings, and how other libraries store theirs."""
