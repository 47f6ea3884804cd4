"""What both sides share. Imports neither `actors` nor `learner`."""
