"""Parts of the experiment `gpu`."""
