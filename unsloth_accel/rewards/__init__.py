"""What is learned for: the rewards by name, functions of one's own, and a guard around each of them."""

from .functions import reward_functions as reward_functions
