"""The dispatch, its operator, the owner's other writers and the workspace as one state machine."""
