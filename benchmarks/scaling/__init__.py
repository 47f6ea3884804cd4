"""The scaling study: measured costs, a simulation of many actors, tables and plots."""
