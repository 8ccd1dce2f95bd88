# %% raises SyntaxError
print "Hello"  #> NNS901 1
