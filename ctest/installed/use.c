/* Uses only the installed header and library. */
#include <apl_ffi.h>
#include <stdio.h>

int main(void)
{
    const uint8_t codes[] = {0x9A, 0x7F};
    const float scales[] = {0.5f, 2.0f};
    const float x[] = {1.0f, 10.0f};
    float y[2] = {0.0f, 0.0f};
    int32_t status = apl_matmul_q(codes, 2, 4, 1, scales, 2, NULL, 0, x, 2, y, 2, 2, 2, 0);

    printf("%s: %g %g\n", apl_ffi_status_text(status), (double)y[0], (double)y[1]);
    return !(status == APL_FFI_OK && apl_ffi_abi_version() == APL_FFI_ABI_VERSION && y[0] == 10.5f &&
             y[1] == 138.0f && apl_ffi_cleanup() == APL_FFI_OK);
}
