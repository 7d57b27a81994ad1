"""SmolLM2-135M-Instruct on quotations of Debian's `fortunes`. They need:

apt-get install fortunes
pip install -c constraints.txt -e ".[language]"
"""
