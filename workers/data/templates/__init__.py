"""Chat templates: render them within limits, and find the assistant's turns in what they write."""
