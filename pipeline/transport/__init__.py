"""What goes between processes: packets through queues, small messages over a store."""
