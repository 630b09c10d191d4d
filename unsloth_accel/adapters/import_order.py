def check(names): pass
def check_accelerator(a): pass
