"""SGLang servers as rollout engines: started, watched over, fed, and hot-swapped in place by the plan."""
