// The same from C++.
#include <apl_ffi.h>

#include <iostream>
#include <string>
#include <vector>

int main()
{
    std::string text(static_cast<std::size_t>(apl_ffi_info(nullptr, 0)) + 1, '\0');
    apl_ffi_info(text.data(), static_cast<std::int32_t>(text.size()));

    const std::vector<float> w{1.0f, -2.0f, 3.0f, 4.0f, 5.0f, -6.0f};
    const std::vector<float> x{1.0f, 1.0f, 1.0f};
    std::vector<float> y(2);
    std::int32_t handle = 0;
    if (apl_weights_from_f32(w.data(), 6, 2, 3, R"({"bits": 32})", &handle) != APL_FFI_OK ||
        apl_matmul(handle, x.data(), 3, y.data(), 2, 1) != APL_FFI_OK ||
        apl_weights_free(handle) != APL_FFI_OK) {
        return 1;
    }
    std::cout << y[0] << ' ' << y[1] << '\n';
    return !(y[0] == 2.0f && y[1] == 3.0f && text.find("\"version\"") != std::string::npos);
}
