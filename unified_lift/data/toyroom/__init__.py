"""A procedural room full of toys: the analytic scene behind `unified_lift.data.synthetic`."""
