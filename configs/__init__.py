"""Configs of the recipes; each file offers `get_config(argument)`."""
