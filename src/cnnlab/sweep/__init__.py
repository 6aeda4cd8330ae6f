"""`cnnlab sweep`: search a recipe's settings with Optuna, by workers that join and leave."""
