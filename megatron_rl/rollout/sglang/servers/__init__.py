"""SGLang's processes on this machine: how they are started and ended, which GPUs they get, and their HTTP."""
