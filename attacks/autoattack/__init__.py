"""AutoAttack: its versions and successive halving."""
