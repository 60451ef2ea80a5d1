"""Text from a model without torch: `tmac.Engine`."""
