"""What one does with a trained model: opened again, predicted with, evaluated."""
