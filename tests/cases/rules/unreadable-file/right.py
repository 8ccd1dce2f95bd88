# %%
print("Hello")
