-- The key of a certificate that was issued and has not been seen in use yet. The one in use
-- stays registered until then: the answer that carried the new one may have been lost.
ALTER TABLE agents ADD COLUMN next_key_pin TEXT;
