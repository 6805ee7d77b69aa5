"""The pages of the app, one module each: a function draws and wires the page, plain functions answer it."""
