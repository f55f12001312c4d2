def social_monitors(sample):
    return 0.0
