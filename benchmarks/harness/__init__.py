"""What experiments share: processes, figures, reports, pictures, tables."""
