"""What the stages share: parameters, tracking, the processes of a run."""
