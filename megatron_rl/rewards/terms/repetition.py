def repetition(sample):
    return 0.0
